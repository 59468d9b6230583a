from moodpo.errors import one_line


def test_what_a_library_says_stands_within_a_sentence():
    error = ValueError("no such\n  file:\tit is gone.")
    assert one_line(error) == "no such file: it is gone"
    assert one_line(error, at_most=8) == "no such "
    assert one_line(ValueError("ends.here"), at_most=5) == "ends"
