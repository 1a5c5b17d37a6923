"""A map of a model: what of it can be read and changed, measured on its own weights.

    model = resolve_model(ModelConfig(name="EleutherAI/pythia-70m"))
    found = measure_model(model, ids_BL)
    found.layers[3].points["mlp_out"].moved        # nats, for an edit of the site

Nothing here is believed of a family: every layer is cut out as a stage of its own and compared
with transformers' whole model, the sums inside each block are computed, every site is changed
and the change of what the model predicts is measured.

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
