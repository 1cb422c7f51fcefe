"""What machines of the clouds cost and have in them. Works without a network: prices come with SkyServe, can be
refreshed, and can be the user's own. Knows prices and hardware; knows no accounts and no capacity."""
