"""The GPU kernels compile to machine code for the architectures they are meant for, with no GPU at hand.

In a process of its own: Triton's interpreter, which other tests use, changes the language for the whole process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BLOCKS = {"BLOCK_M": 16, "BLOCK_R": 32}
CONSTANTS: dict[str, dict[str, Any]] = {
    "plan_kernel": {"CAPACITY": 16, "BLOCK_T": 64, "BLOCK_M": 16},
    "shrink_kernel": {**BLOCKS, "SLICES": 3, "RANK_BLOCKS": 2, "SPLIT_K": 4, "BLOCK_K": 64, "WIDEN": False},
    "expand_kernel": {**BLOCKS, "SLICES": 3, "COLUMN_BLOCKS": 8, "SPLIT_K": 4, "BLOCK_N": 64, "WIDEN": False},
    "fused_kernel": {**BLOCKS, "SLICES": 1, "SPLIT_N": 4, "BLOCK_K": 64, "BLOCK_N": 64, "WIDEN": False},
}
POINTERS = {"v": "*fp32", "a_table": "*i64", "b_table": "*i64", "offsets": "*i64", "slots": "*i64", "scale": "fp32"}
POINTERS |= dict.fromkeys(["ranks", "widths", "order", "tile_slot", "tile_first", "tile_count", "tiles"], "*i32")
CASES = [(name, capability, element) for name in CONSTANTS for capability in (80, 90) for element in ("*bf16", "*fp16")]
COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sheaf_engine.kernels.triton import kernels

for name, capability, types, constants in json.load(sys.stdin):
    function = getattr(kernels, name)
    signature = {arg: "constexpr" if arg in constants else types.get(arg, "i32") for arg in function.arg_names}
    fixed = {(function.arg_names.index(arg),): value for arg, value in constants.items()}
    built = compile(ASTSource(function, signature, fixed), target=GPUTarget("cuda", capability, 32))
    print(json.dumps([len(built.asm["cubin"]), "mma" in built.asm["ptx"], built.metadata.shared]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """For each case the size of the machine code, whether it uses the matrix units, and its shared memory in bytes."""
    cases = [(name, cc, {"x": element, "y": element, **POINTERS}, CONSTANTS[name]) for name, cc, element in CASES]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    ended = subprocess.run(
        [sys.executable, "-c", COMPILE],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
        cwd=Path(__file__).parent,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.timeout(20, func_only=True)
@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_each_kernel_compiles_uses_the_matrix_units_and_fits_small_gpus(compiled: list[Any], number: int) -> None:
    code, matrix_units, shared = compiled[number]
    assert code > 1000
    assert matrix_units == (CASES[number][0] != "plan_kernel")
    assert shared <= 99 * 1024
