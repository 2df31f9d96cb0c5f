// A stand-in for Calico's Typha, and the generator of fixtures.json: Go's own encoding/gob on the other side of
// loadtest/src/incumbent. After a change: `go run . fixtures > fixtures.json`.
module bulrush/loadtest/calico-typha

go 1.24.0

require github.com/klauspost/compress v1.18.0
