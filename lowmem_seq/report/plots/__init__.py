"""What a report's page draws: Plotly's JSON, and a sentence for each plot."""
