/**
 * Refusals as Google's JSON API words them.
 * https://cloud.google.com/storage/docs/json_api/v1/status-codes
 */

export interface ApiErrorPlace {
  readonly locationType?: 'header' | 'parameter' | 'entity.bytes';
  readonly location?: string;
  readonly domain?: 'global' | 'usageLimits';
  readonly headers?: Readonly<Record<string, string>>;
}

export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
    readonly place: ApiErrorPlace = {},
  ) {
    super(message);
  }

  /** The document that goes with the status. */
  body(): string {
    const { locationType, location, domain = 'global' } = this.place;
    const one = { message: this.message, domain, reason: this.reason, ...(location === undefined ? {} : { locationType, location }) };
    return JSON.stringify({ error: { code: this.status, message: this.message, errors: [one] } });
  }
}

export const noSuchBucket = (): ApiError => new ApiError(404, 'notFound', 'The specified bucket does not exist.');
export const noSuchObject = (bucket: string, name: string): ApiError => new ApiError(404, 'notFound', `No such object: ${bucket}/${name}`);
export const invalid = (message: string, location?: string): ApiError =>
  new ApiError(400, 'invalid', message, location === undefined ? {} : { locationType: 'parameter', location });
export const conditionNotMet = (): ApiError =>
  new ApiError(412, 'conditionNotMet', 'At least one of the pre-conditions you specified did not hold.', { locationType: 'header', location: 'If-Match' });
export const notModified = (): ApiError => new ApiError(304, 'notModified', 'Not Modified');
export const anonymousDenied = (permission: string): ApiError =>
  new ApiError(401, 'required', `Anonymous caller does not have ${permission} access to the Google Cloud Storage resource.`, {
    locationType: 'header', location: 'Authorization', headers: { 'www-authenticate': 'Bearer realm="https://accounts.google.com/"' },
  });
export const invalidCredentials = (): ApiError =>
  new ApiError(401, 'authError', 'Invalid Credentials', {
    locationType: 'header', location: 'Authorization', headers: { 'www-authenticate': 'Bearer realm="https://accounts.google.com/", error="invalid_token"' },
  });
export const forbidden = (permission: string): ApiError =>
  new ApiError(403, 'forbidden', `caller does not have ${permission} access to the Google Cloud Storage resource.`);
