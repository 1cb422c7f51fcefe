"""The production loop on a virtual clock: what a service would cost, and how it would fare."""
