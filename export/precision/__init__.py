"""Number formats: FP16 with proven bounds, BF16 and FP32."""
