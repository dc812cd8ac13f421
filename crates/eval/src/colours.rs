//! Colours of strategies and experts, the same in plots and in the report.

/// Red, green and blue of colours that stay apart for colour-blind readers (Okabe and Ito), in order of use.
pub const COLOURS: [[u8; 3]; 8] = [
    [0, 114, 178],
    [230, 159, 0],
    [0, 158, 115],
    [204, 121, 167],
    [86, 180, 233],
    [213, 94, 0],
    [120, 110, 20],
    [90, 90, 90],
];
