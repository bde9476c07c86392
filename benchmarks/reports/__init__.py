"""Reports of benchmarks: tables, CSV, charts and HTML pages from figures. They measure nothing."""
