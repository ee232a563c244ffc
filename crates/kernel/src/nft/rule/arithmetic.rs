//! What is computed on loaded bytes: masks, shifts, byte order.

use super::*;

impl Machine<'_> {
    pub(super) fn bitwise(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let len = be32(3)? as usize;
        let loaded = self.fetch(be32(1))?;
        let Loaded::Fields {
            parts,
            len: loaded_len,
            mask,
            xor,
            shift,
            payload,
        } = &*loaded
        else {
            return None;
        };
        if *loaded_len != len {
            return None;
        }
        let value = |kind: u16| Some(a.find(kind)?.nested().find(1)?.data);
        let (mut new_mask, mut new_xor, mut new_shift) = (mask.clone(), xor.clone(), *shift);
        match be32(6).unwrap_or(0) {
            0 if *shift == 0 => {
                let (and, flip) = (value(4)?, value(5)?);
                if and.len() != len || flip.len() != len {
                    return None;
                }
                for i in 0..len {
                    new_mask[i] &= and[i];
                    new_xor[i] = (new_xor[i] & and[i]) ^ flip[i];
                }
            }
            op @ (1 | 2) => {
                let bits: [u8; 4] = value(7)?.try_into().ok()?;
                let bits = i64::from(u32::from_ne_bytes(bits));
                new_shift += if op == 2 { bits } else { -bits };
            }
            _ => return None,
        }
        let value = Loaded::Fields {
            parts: parts.clone(),
            len,
            mask: new_mask,
            xor: new_xor,
            shift: new_shift,
            payload: *payload,
        };
        self.store(be32(2), value, len);
        Some(())
    }

    pub(super) fn byteorder(&mut self, a: Attrs<'_>) -> Option<()> {
        let be32 = |kind: u16| a.find(kind).and_then(|x| x.be32());
        let len = be32(4)? as usize;
        let size = be32(5)? as usize;
        let loaded = self.fetch(be32(1))?;
        let swapped = match &*loaded {
            Loaded::Fields {
                parts,
                len: loaded_len,
                mask,
                xor,
                shift: 0,
                payload,
            } if *loaded_len == len && size == len && parts.len() == 1 => {
                let mut parts = parts.clone();
                let mut mask = mask.clone();
                let mut xor = xor.clone();
                // What is known of a masked field must be kept before its bytes change places.
                if let Some(read) = self.masked(*payload, len, &mask) {
                    parts[0].read = read;
                    mask = vec![0xff; len];
                }
                parts[0].read.ty = parts[0].read.ty.swapped();
                mask.reverse();
                xor.reverse();
                Loaded::Fields {
                    parts,
                    len,
                    mask,
                    xor,
                    shift: 0,
                    payload: None,
                }
            }
            Loaded::Constant(bytes) if bytes.len() == len && size == len => {
                Loaded::Constant(bytes.iter().rev().copied().collect())
            }
            _ => return None,
        };
        self.store(be32(2), swapped, len);
        Some(())
    }

    pub(super) fn masked(
        &self,
        payload: Option<(u32, u32)>,
        len: usize,
        mask: &[u8],
    ) -> Option<Read> {
        let (base, offset) = payload?;
        keys::masked_payload(base, offset, len as u32, mask, self.known)
    }
}
