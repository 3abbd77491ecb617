"""How much a scan may change, and where: noise, body, budget."""
