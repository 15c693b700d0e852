"""The store: results of stages, each computed once; no torch, no Lightning, no Hydra."""
