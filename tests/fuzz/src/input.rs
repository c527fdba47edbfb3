//! Taking a fuzzer's bytes apart. What is missing at the end reads as 0, so that every input means something.

/// The rest of an input.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Input(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next bytes: `bytes_max` of them, if there are so many.
    pub fn take(&mut self, bytes_max: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes_max.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Bytes behind their number.
    pub fn bytes(&mut self) -> &'a [u8] {
        let bytes = self.u16();
        self.take(bytes.into())
    }

    pub fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }
}
