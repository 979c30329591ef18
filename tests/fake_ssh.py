"""A stand-in for ssh in tests: what each host answers."""

from types import SimpleNamespace


class FakeSsh:
    """Stands for subprocess.run: {host: (exit code, what it prints, its errors)} or an exception."""

    def __init__(self, answers):
        self.answers, self.commands = answers, []

    def __call__(self, command, **_):
        self.commands.append(command)
        answer = self.answers[command[-2]]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(returncode=answer[0], stdout=answer[1], stderr=answer[2])
