import numpy as np

from heliostat_jobs.evaluate import LabelledSet, with_classes_of


def labelled(classes: tuple[str, ...], labels: list[int]) -> LabelledSet:
    return LabelledSet(
        np.zeros((len(labels), 2, 2, 3), np.uint8), labels, [str(n) for n in range(len(labels))], classes
    )


def test_with_classes_of__compares_names_not_numbers() -> None:
    bank = labelled(("cat", "dog"), [0, 1])
    queries = labelled(("dog", "emu", "cat"), [0, 1, 2])
    assert with_classes_of(bank, queries).labels == [1, 2, 0]
    assert with_classes_of(bank, queries).classes == ("cat", "dog", "emu")
