import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scene_distill.representations.meshes import distinct_rows

COUNTS = st.integers(0, 30)


@settings(max_examples=60, deadline=None)
@given(COUNTS.flatmap(lambda n: arrays(np.int64, (n, 3), elements=st.integers(-2, 2))), st.booleans())
def test_distinct_rows_are_those_of_numpy(rows, as_floats) -> None:
    rows = rows / 2 if as_floats else rows
    _, first, place = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    found, where = distinct_rows(rows)
    assert np.array_equal(found, first) and np.array_equal(where, place.reshape(-1))
