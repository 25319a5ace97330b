"""All that differs between torch releases: `gate` picks the era module that serves the installed one."""
