"""Triton's interpreter must be chosen before anything imports Triton, which vLLM and torch's compiler do."""

import os

os.environ["TRITON_INTERPRET"] = "1"
