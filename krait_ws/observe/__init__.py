"""What the server tells about itself: metrics, health, and a dashboard, all below ``/_krait/``.

Nothing here costs anything per message: sessions count for themselves, and are looked at when somebody asks.
"""
