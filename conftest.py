"""The option that tests/test_fuzz.py looks for: pytest takes options from the root alone."""


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="the fuzzers' long form: 2,000 inputs")
