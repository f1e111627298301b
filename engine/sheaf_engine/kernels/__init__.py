"""Multi-LoRA kernels (SGMV): ``y += scale * (x A) B`` for a batch whose tokens use different adapters.

- ``reference``: the specification, in float64.
- ``segments``: which tokens use which adapter, worked out once per engine step.
- ``choice``: which form of the operator a segment gets, a pure function of its shape.
- ``cpu``: the operator on CPU: a just-in-time compiled grouped kernel (``grouped``, on ``micro`` and ``simd``) and
  plain matrix products.
- ``triton``: the operator on NVIDIA GPUs.

Nothing here imports vLLM; ``sheaf_engine.plugin`` fits the kernels into it.
"""
