"""ExFM: one large teacher for many students, over a stream. See README.md."""
