"""Pages from saved results: result → view → figure → page. Plotly and Jinja live here, torch does not."""
