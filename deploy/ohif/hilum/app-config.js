/* OHIF on Hilum's own DICOMweb, on one origin: nginx.conf beside this file serves both. */
window.config = {
  routerBasename: '/',
  extensions: [],
  modes: [],
  showStudyList: true,
  investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: 'dicomweb',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'dicomweb',
      configuration: {
        friendlyName: 'Hilum: films and AI results, research use only',
        name: 'hilum',
        qidoRoot: '/dicomweb',
        wadoRoot: '/dicomweb',
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        qidoSupportsIncludeField: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        omitQuotationForMultipartRequest: true,
        bulkDataURI: { enabled: true, relativeResolution: 'studies' },
      },
    },
  ],
};

/* OHIF 3.12 draws the image of a structured report before it knows which annotations are the report's, and
   then has no reason to draw them: verdict and outlines stay away until the mouse changes something. So they
   are drawn once more after each image. */
const redraws = {};
document.addEventListener(
  'CORNERSTONE_IMAGE_RENDERED',
  ({ detail: { viewportId } }) => {
    clearTimeout(redraws[viewportId]);
    redraws[viewportId] = setTimeout(() => {
      if (window.cornerstone.getEnabledElementByViewportId(viewportId)) {
        window.cornerstoneTools.utilities.triggerAnnotationRenderForViewportIds([viewportId]);
      }
    }, 300);
  },
  true // these events do not bubble
);
