"""An option of test_fuzz.py and test_kills.py: pytest takes options from the root alone."""


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="many more random inputs and kills")
