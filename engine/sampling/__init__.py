"""Parts of the model outside its graphs: tokenizer, noise, schedule, rotary tables, preview."""
