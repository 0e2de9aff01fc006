"""What is compared: the words of a suite and the suites that ship."""
