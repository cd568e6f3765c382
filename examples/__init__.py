"""Examples to run and to copy: `checkout` waits for a payment, `backup` copies a folder."""
