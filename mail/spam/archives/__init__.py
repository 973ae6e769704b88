"""What archives say of themselves: names, sizes, encryption. Their headers are read; nothing in them is unpacked."""
