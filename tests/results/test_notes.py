"""Notes of the parts of a result."""

from lite_probe.results.provenance import Note, join_notes


def test_notes_are_joined_each_once_in_order() -> None:
    first, second, third = (Note(code=code, message=code) for code in "abc")
    other = Note(code="a", message="of another kind")
    assert join_notes((second, first), [second, third], (other,)) == (second, first, third, other)
    assert join_notes() == ()
