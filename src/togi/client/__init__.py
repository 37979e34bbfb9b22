"""Models on servers: requests and answers as values, and the client that asks, stores, retries and keeps to a budget.

`endpoint`, `requests` and `answers` are values and cost nothing to import; `client` is what asks.
"""
