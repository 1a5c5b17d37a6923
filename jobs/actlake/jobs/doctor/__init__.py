"""`actlake doctor`: what is wrong with this machine, a cluster or a store, and what to do."""
