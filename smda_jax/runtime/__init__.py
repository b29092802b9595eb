"""What programs run on: devices, memory, precision, compiled programs and processes."""
