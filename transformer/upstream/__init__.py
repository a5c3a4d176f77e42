"""The hop to the stock predictor: messages, connections, and which version is behind them."""
