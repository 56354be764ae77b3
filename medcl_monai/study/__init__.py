"""Studies: what is compared with what, how sure the answer is, and what may be said."""
