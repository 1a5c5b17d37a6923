"""Language models as stages that hand out activations.

    model = resolve_model(ModelConfig(name="EleutherAI/pythia-70m"))
    sites = [Site.parse("resid_post.3")]
    model.check_sites(sites)
    stages = split_layers(num_layers_needed(sites), 2)
    stage = load_stage(model, stages[0], sites)

`resolve_model` finds the model and reads no weights; `load_stage` loads some layers of it,
`load_head` the final norm and unembedding, `load_chain` all of it into one process. An
`Intervention` changes a site while the model runs.

The names are in ``__init__.pyi``; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
