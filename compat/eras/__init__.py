"""All that differs between torch releases: `gate` imports the era module for the installed one."""
