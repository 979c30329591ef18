"""What is wrong with this machine, its packages and the configured model, said before a run meets it.

Facts are gathered first (values, told apart by what they are about), then judged by small functions from facts to
findings. docs/doctor.md lists all findings.
"""
