"""Models on servers: requests and answers as values, and a client that sends, stores, retries and keeps to a budget.

`endpoint`, `requests` and `answers` hold plain values and are cheap to import; `client` sends the requests.
"""
