//! Rule rendering: from calculated policy to chains. Pure.
