package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/big"
	"slices"
	"time"

	"github.com/mayfly-ca/mayfly/ca/identity"
)

// Bounds of a feed.
const (
	// MaxFeedBytes bounds the PEM that ParseFeed reads.
	MaxFeedBytes = 16 << 20
	// MaxFeedIntermediates bounds the intermediates of one feed: the current one,
	// and rotated ones whose leaves may still be valid.
	MaxFeedIntermediates = 16
	// MaxFeedSkew is how far a CRL's thisUpdate may be ahead of the local clock.
	MaxFeedSkew = 60 * time.Second
)

// Reasons why a Feed refuses a chain. Errors of CoversChain and CheckChain wrap
// one of these.
var (
	// ErrRevoked: the leaf or its intermediate is revoked.
	ErrRevoked = errors.New("certificate is revoked")
	// ErrBeforeFloor: the leaf was issued before the revocation floor. All
	// certificates from before the floor are revoked.
	ErrBeforeFloor = errors.New("certificate was issued before everything was revoked")
	// ErrNotCovered: the feed has no CRL of the leaf's intermediate.
	ErrNotCovered = errors.New("revocation list covers no such certificate")
	// ErrStale: a CRL of the feed is past its nextUpdate.
	ErrStale = errors.New("revocation list is past its next update")
	// ErrClockSkew: a CRL's thisUpdate is more than MaxFeedSkew ahead.
	ErrClockSkew = errors.New("revocation list is from the future: a clock is wrong")
)

// Feed is the verified content of one GET /v1/crl/wait. It has the CRL of each
// intermediate in use, all with the same number, and the roots' CRLs for the
// intermediates. It is immutable and safe for concurrent use.
type Feed struct {
	// Number is the number of all CRLs of the intermediates.
	Number int64
	// Floor is the revocation floor: certificates issued before it are refused.
	Floor time.Time
	// ThisUpdate is the earliest thisUpdate of the intermediates' CRLs.
	ThisUpdate time.Time
	// NextUpdate is the earliest nextUpdate of the intermediates' CRLs.
	NextUpdate time.Time

	revoked        map[string]IntermediateID // serials of leaves, and the intermediate whose CRL lists each
	intermediates  map[IntermediateID]feedIntermediate
	revokedIssuers map[IntermediateID]struct{} // all intermediates in the roots' CRLs, also those not in the feed
}

// feedIntermediate is an intermediate in the feed.
type feedIntermediate struct {
	nextUpdate     time.Time
	rootNextUpdate time.Time
}

// IntermediateID identifies an intermediate as a CRL does, by its issuer's name
// and its serial number (RFC 5280 section 5.3). It is the SHA-256 of both.
type IntermediateID [sha256.Size]byte

// IntermediateIDOf returns the ID of an intermediate's certificate.
func IntermediateIDOf(cert *x509.Certificate) IntermediateID {
	return intermediateID(cert.RawIssuer, cert.SerialNumber)
}

// intermediateID hashes a name and a serial. The name is DER, which has its own length.
func intermediateID(issuer []byte, serial *big.Int) IntermediateID {
	return sha256.Sum256(slices.Concat(issuer, serial.Bytes()))
}

// ParseFeed parses and verifies the PEM of GET /v1/crl/wait. The CERTIFICATE blocks
// are intermediates, each signed by one of roots. The X509 CRL blocks are one CRL
// from each intermediate and one from each root that signed an intermediate. All
// CRLs of intermediates must have the same number and the same floor, and none may
// lack them. Blocks may have any order, and any other content is an error.
// ParseFeed does not check times, because the caller judges a feed's age.
func ParseFeed(data []byte, roots []*x509.Certificate) (*Feed, error) {
	p := feedParser{roots: roots}
	if err := p.read(data); err != nil {
		return nil, fmt.Errorf("revocation feed: %w", err)
	}
	f, err := p.verify()
	if err != nil {
		return nil, fmt.Errorf("revocation feed: %w", err)
	}
	return f, nil
}

// Revoked reports whether a leaf with this serial, in the format of Serial, is in
// a CRL of the feed.
func (f *Feed) Revoked(serial string) bool {
	_, ok := f.revoked[serial]
	return ok
}

// Len returns the number of revoked leaves.
func (f *Feed) Len() int { return len(f.revoked) }

// All returns the serials of the revoked leaves, each with the intermediate whose
// CRL lists it, in no particular order.
func (f *Feed) All() iter.Seq2[string, IntermediateID] { return maps.All(f.revoked) }

// BeforeFloor reports whether leaf was issued before the floor.
func (f *Feed) BeforeFloor(leaf *x509.Certificate) bool {
	return identity.BeforeFloor(leaf, f.Floor)
}

// RevokedIntermediate reports whether a root's CRL lists this intermediate. The
// issuer removes a compromised one from the feed, so the feed may not contain it.
func (f *Feed) RevokedIntermediate(intermediate *x509.Certificate) bool {
	_, ok := f.revokedIssuers[IntermediateIDOf(intermediate)]
	return ok
}

// RevokedIntermediates returns the intermediates in the roots' CRLs, in no
// particular order.
func (f *Feed) RevokedIntermediates() []IntermediateID {
	return slices.Collect(maps.Keys(f.revokedIssuers))
}

// CoversChain returns nil if the feed can judge a verified chain (leaf first, root
// last) at now. No root's CRL may list its intermediate, the feed must contain that
// intermediate, and the CRLs of both authorities must not be past their nextUpdate.
// CoversChain does not check the leaf.
func (f *Feed) CoversChain(chain []*x509.Certificate, now time.Time) error {
	issuer, err := f.issuerOf(chain)
	switch {
	case err != nil:
		return err
	case f.ThisUpdate.After(now.Add(MaxFeedSkew)):
		return fmt.Errorf("%w: this update %s", ErrClockSkew, f.ThisUpdate.UTC().Format(time.RFC3339))
	case !now.Before(issuer.nextUpdate):
		return fmt.Errorf("%w (%s)", ErrStale, issuer.nextUpdate.UTC().Format(time.RFC3339))
	case !now.Before(issuer.rootNextUpdate):
		return fmt.Errorf("%w: the root's (%s)", ErrStale, issuer.rootNextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

// issuerOf returns the intermediate of a chain. It is an error if a root's CRL
// lists the intermediate or the feed does not contain it.
func (f *Feed) issuerOf(chain []*x509.Certificate) (feedIntermediate, error) {
	if len(chain) != 3 {
		return feedIntermediate{}, fmt.Errorf("%w: its chain has %d certificates, not 3", ErrNotCovered, len(chain))
	}
	issuer, ok := f.intermediates[IntermediateIDOf(chain[1])]
	switch {
	case f.RevokedIntermediate(chain[1]):
		return issuer, fmt.Errorf("%w: its intermediate %s", ErrRevoked, Serial(chain[1].SerialNumber))
	case !ok:
		return issuer, fmt.Errorf("%w: intermediate %s", ErrNotCovered, Serial(chain[1].SerialNumber))
	}
	return issuer, nil
}

// CheckChain calls CoversChain and also returns an error if the leaf is revoked or
// from before the floor.
func (f *Feed) CheckChain(chain []*x509.Certificate, now time.Time) error {
	if err := f.CoversChain(chain, now); err != nil {
		return err
	}
	return f.checkLeaf(chain)
}

// CheckChainAtAnyAge is CheckChain without checks of the feed's times. It is for a
// connection that only keeps relays that a fresh feed admitted.
func (f *Feed) CheckChainAtAnyAge(chain []*x509.Certificate) error {
	if _, err := f.issuerOf(chain); err != nil {
		return err
	}
	return f.checkLeaf(chain)
}

// checkLeaf returns an error if a chain's leaf is revoked or from before the
// floor.
func (f *Feed) checkLeaf(chain []*x509.Certificate) error {
	serial := Serial(chain[0].SerialNumber)
	if f.Revoked(serial) {
		return fmt.Errorf("%w: %s", ErrRevoked, serial)
	}
	if f.BeforeFloor(chain[0]) {
		return fmt.Errorf("%w: %s", ErrBeforeFloor, serial)
	}
	return nil
}

// feedParser has the parts that ParseFeed has read and not yet verified.
type feedParser struct {
	roots         []*x509.Certificate
	intermediates []*x509.Certificate
	lists         []*x509.RevocationList
}

func (p *feedParser) read(data []byte) error {
	if len(data) > MaxFeedBytes {
		return fmt.Errorf("larger than %d bytes", MaxFeedBytes)
	}
	for data = bytes.TrimSpace(data); len(data) > 0; data = bytes.TrimSpace(data) {
		if !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
			return errors.New("text outside of PEM blocks")
		}
		block, rest := pem.Decode(data)
		if block == nil {
			return errors.New("not PEM")
		}
		if len(block.Headers) > 0 {
			return errors.New("PEM block with headers")
		}
		if err := p.add(block); err != nil {
			return err
		}
		data = rest
	}
	if len(p.intermediates) == 0 {
		return errors.New("no intermediate")
	}
	return nil
}

func (p *feedParser) add(block *pem.Block) error {
	switch block.Type {
	case "CERTIFICATE":
		if len(p.intermediates) == MaxFeedIntermediates {
			return fmt.Errorf("more than %d intermediates", MaxFeedIntermediates)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("intermediate: %w", err)
		}
		p.intermediates = append(p.intermediates, cert)
	case "X509 CRL":
		if len(p.lists) == 2*MaxFeedIntermediates {
			return fmt.Errorf("more than %d lists", 2*MaxFeedIntermediates)
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		p.lists = append(p.lists, list)
	default:
		return fmt.Errorf("unexpected PEM block %.20q", block.Type)
	}
	return nil
}

func (p *feedParser) verify() (*Feed, error) {
	f := &Feed{
		revoked:        map[string]IntermediateID{},
		intermediates:  map[IntermediateID]feedIntermediate{},
		revokedIssuers: map[IntermediateID]struct{}{},
	}
	rootLists := map[*x509.Certificate]*x509.RevocationList{}
	for i, cert := range p.intermediates {
		root, err := p.rootOf(cert)
		if err != nil {
			return nil, err
		}
		rootList := rootLists[root]
		if rootList == nil {
			if rootList, err = p.take(root); err != nil {
				return nil, fmt.Errorf("root's list: %w", err)
			}
			rootLists[root] = rootList
			for _, e := range rootList.RevokedCertificateEntries {
				f.revokedIssuers[intermediateID(rootList.RawIssuer, e.SerialNumber)] = struct{}{}
			}
		}
		list, err := p.take(cert)
		if err != nil {
			return nil, fmt.Errorf("list of intermediate %s: %w", Serial(cert.SerialNumber), err)
		}
		id := IntermediateIDOf(cert)
		if err := f.add(list, id, i == 0); err != nil {
			return nil, err
		}
		if _, twice := f.intermediates[id]; twice {
			return nil, errors.New("an intermediate stands twice")
		}
		f.intermediates[id] = feedIntermediate{nextUpdate: list.NextUpdate, rootNextUpdate: rootList.NextUpdate}
	}
	if len(p.lists) > 0 {
		return nil, errors.New("a list that no intermediate and no root has signed")
	}
	return f, nil
}

// rootOf finds the root that signed an intermediate. It does not check the
// intermediate's validity period: an intermediate signs CRLs for a day after its end.
func (p *feedParser) rootOf(cert *x509.Certificate) (*x509.Certificate, error) {
	for _, root := range p.roots {
		if bytes.Equal(cert.RawIssuer, root.RawSubject) && cert.CheckSignatureFrom(root) == nil {
			if !cert.IsCA || !cert.BasicConstraintsValid || bytes.Equal(cert.Raw, root.Raw) {
				return nil, errors.New("a certificate that is not an intermediate's")
			}
			return root, nil
		}
	}
	return nil, fmt.Errorf("intermediate %s is not signed by a known root", Serial(cert.SerialNumber))
}

// take removes and returns the only list that issuer signed.
func (p *feedParser) take(issuer *x509.Certificate) (*x509.RevocationList, error) {
	i := slices.IndexFunc(p.lists, func(l *x509.RevocationList) bool { return signed(l, issuer) })
	if i < 0 {
		return nil, errors.New("missing, or its signature does not verify")
	}
	list := p.lists[i]
	p.lists = slices.Delete(p.lists, i, i+1)
	if slices.ContainsFunc(p.lists, func(l *x509.RevocationList) bool { return signed(l, issuer) }) {
		return nil, errors.New("two of one issuer")
	}
	for _, e := range list.Extensions {
		// A critical extension narrows the scope of a list (delta, distribution
		// point). mayfly's lists are complete (RFC 5280 5.2).
		if e.Critical {
			return nil, fmt.Errorf("critical extension %v", e.Id)
		}
	}
	if list.Number == nil || !list.Number.IsInt64() || list.Number.Sign() < 0 {
		return nil, errors.New("no CRL number that fits 63 bits")
	}
	if !list.NextUpdate.After(list.ThisUpdate) {
		return nil, errors.New("next update is not after this update")
	}
	return list, nil
}

func signed(l *x509.RevocationList, issuer *x509.Certificate) bool {
	return bytes.Equal(l.RawIssuer, issuer.RawSubject) &&
		(len(l.AuthorityKeyId) == 0 || bytes.Equal(l.AuthorityKeyId, issuer.SubjectKeyId)) &&
		l.CheckSignatureFrom(issuer) == nil
}

// add adds the list of the intermediate with this id.
func (f *Feed) add(list *x509.RevocationList, id IntermediateID, first bool) error {
	floor, err := identity.Floor(list)
	if err != nil {
		return err
	}
	number := list.Number.Int64()
	if first {
		f.Number, f.Floor = number, floor
		f.ThisUpdate, f.NextUpdate = list.ThisUpdate, list.NextUpdate
	}
	if number != f.Number {
		return fmt.Errorf("lists of numbers %d and %d", f.Number, number)
	}
	if !floor.Equal(f.Floor) {
		return errors.New("lists with different floors")
	}
	if list.ThisUpdate.Before(f.ThisUpdate) {
		f.ThisUpdate = list.ThisUpdate
	}
	if list.NextUpdate.Before(f.NextUpdate) {
		f.NextUpdate = list.NextUpdate
	}
	for _, e := range list.RevokedCertificateEntries {
		f.revoked[Serial(e.SerialNumber)] = id
	}
	return nil
}
