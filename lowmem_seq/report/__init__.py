"""Reports: run folders to tables, and to one offline HTML page with plots."""
