"""MMLU: 57 subjects, a file each, in groups (Hendrycks et al. 2021)."""

from collections.abc import Mapping, Sequence

from evaluation.tasks import MultiChoiceTask

OVERALL = "Overall"


class MMLU(MultiChoiceTask):
    """Multiple choice with one more group: all subjects of all groups."""

    def groups(self, files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        groups = super().groups(files)
        return groups | {OVERALL: sorted({path for paths in groups.values() for path in paths})}
