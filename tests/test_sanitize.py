"""The C++ kernels under AddressSanitizer and UBSan, on a few of the shapes of ``make asan``."""

import pytest
import sanitize


@pytest.mark.slow
def test_random_shapes_touch_no_foreign_memory():
    if sanitize.runtimes() is None:
        pytest.skip("needs g++ with libasan and libubsan")
    done = sanitize.run(200, optimize="-O0", timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.startswith("200 shapes agree: ")
