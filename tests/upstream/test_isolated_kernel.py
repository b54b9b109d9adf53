"""jupyter_kernel_test's own ipykernel suite, asked of our kernelspec. Run by run.py, in the unpacked sdist."""

from __future__ import annotations

import test_ipykernel


class IsolatedKernelTests(test_ipykernel.IPyKernelTests):  # type: ignore[misc]
    """Every question that the stock kernel answers, the isolated one answers alike."""

    kernel_name = "isolated-python"
