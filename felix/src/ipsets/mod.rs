//! IP sets: rendering and parsing (pure), and the driver that writes only differences.
