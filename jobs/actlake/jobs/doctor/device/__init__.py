"""``actlake doctor --device``: whether an accelerator computes, copies and fails as it should."""
