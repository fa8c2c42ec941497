"""The paper's experiments at small scale, each with what it must show: see README.md here."""
