"""`lckv score` against the figures that were computed with the official code."""

import json

import pytest

import serving

REFERENCE = json.loads((serving.DEMO / "reference.json").read_text())


@pytest.mark.parametrize("dtype,tolerance", [("float32", 1e-3), ("bfloat16", 3e-3)])
def test_score_equals_the_reference(dtype, tolerance):
    with serving.System(serving.DEMO, "--dtype", dtype) as system:
        for mode in ("exact", "iterated"):
            ran = serving.run(
                *("lckv", "score", serving.DEMO / "eval.txt", "--json"),
                *("--router", system.router.address, "--prefill-mode", mode),
                *("--context", REFERENCE["context"], "--stride", REFERENCE["stride"]),
                timeout=600,
            )
            assert ran.returncode == 0, ran.stderr
            result = json.loads(ran.stdout)
            assert result["tokens"] == REFERENCE["tokens_scored"]
            assert result["windows"] == REFERENCE["windows"]
            expected = REFERENCE[mode]["perplexity"]
            assert abs(result["perplexity"] / expected - 1) <= tolerance, (mode, result)
