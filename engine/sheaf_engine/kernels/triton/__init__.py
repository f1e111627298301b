"""The multi-LoRA operator on NVIDIA GPUs, in Triton.

- ``plan``: sorts a batch by adapter and builds the list of tiles, on the device, in one launch.
- ``kernels``: the device code: shrink, expand, and both fused.
- ``tiles``: which launch a shape gets, from a table that is shipped as data (``tiles.json``).
- ``sgmv``: the operator, from torch tensors.

The results are tested under Triton's interpreter on CPU. Speed is not yet measured on any GPU: the table holds
estimates and says so.
"""
