"""The mathematics: estimators as data, the weights of a row, and the oracle."""
