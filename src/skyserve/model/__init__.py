"""The nouns: frozen dataclasses and enums, standard library only. They know nothing of clocks, files or networks."""
