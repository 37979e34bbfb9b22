"""The choice of arithmetic: a method is used only if it is exact and faster."""

import time

import pytest
import torch

from togi.model.numerics import TIMED_ROWS, apply_numerics, choose_numerics, fp32_products, linear, worst_errors


def rounding(rows, weight):
    """Products of a machine that uses the permission to round to bfloat16."""
    return (rows.bfloat16().double() @ weight.bfloat16().double().T).float()


def free(rows, weight):
    """Products that are exact when they are checked, and take no time when they are timed."""
    return linear(rows, weight) if len(rows) != TIMED_ROWS else rows


def test_a_product_that_rounds_is_left_off():
    chosen = choose_numerics(onednn=rounding)
    assert chosen.fp32_mode == "default" and chosen.onednn_error > 100
    assert "oneDNN for float32 is off" in chosen.describe()


def test_an_exact_and_faster_product_is_taken():
    assert choose_numerics(onednn=free).fp32_mode == "onednn"


def test_a_slower_product_is_left_off():
    def slow(rows, weight):
        time.sleep(0.02)
        return linear(rows, weight)

    assert choose_numerics(onednn=slow).fp32_mode == "default"


def test_rounding_is_seen_from_far():
    exact, rounded = worst_errors([linear, rounding])
    assert exact < 1e-3 < 0.05 < rounded


def test_trying_changes_no_setting():
    before = torch.backends.mkldnn.matmul.fp32_precision
    choose_numerics()
    with fp32_products("onednn"):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_applying_sets_the_process():
    before = torch.backends.mkldnn.matmul.fp32_precision
    chosen = choose_numerics(onednn=free)
    try:
        apply_numerics(chosen)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        assert torch.get_num_threads() == chosen.threads
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA gets")
def test_compute_type_is_one_that_torch_knows():
    chosen = choose_numerics()
    assert chosen.dtype in (torch.float32, torch.bfloat16)
    assert str(chosen.dtype) == f"torch.{chosen.compute_dtype}"
